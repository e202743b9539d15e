"""`python -m lavis_peft.cli` is the `lavis-peft` command."""

from lavis_peft.cli import main

main()

"""What an adapter is, where it sits, and how it is saved and merged. Nothing in here knows LAVIS."""

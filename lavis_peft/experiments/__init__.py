"""The paper's experiments by number: settings, run configs, parameter counts, and tables of finished runs."""

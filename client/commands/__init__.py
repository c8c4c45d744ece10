"""Turn arguments into settings, and outcomes into words; one file for each command."""

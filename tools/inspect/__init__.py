"""Looking into a data directory: commands over what `look` finds, and `repair`."""

"""Where models come from, and their cards."""

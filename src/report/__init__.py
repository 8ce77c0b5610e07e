"""An HTML page that compares runs."""

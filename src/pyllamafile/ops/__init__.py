"""What the commands do, a module each. Nothing here prints."""

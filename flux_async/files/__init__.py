"""Images as files: what their bytes say, where they come from, how they are written whole."""

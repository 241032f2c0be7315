"""The page to look at a batch, and a contact sheet: rows in, files out."""

"""Image files: reading, checking, uploading, downloading and writing them."""

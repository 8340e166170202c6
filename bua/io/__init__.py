"""Reading and writing of images and files."""

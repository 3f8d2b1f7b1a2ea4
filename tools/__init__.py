"""What `make` uses to run the chapters and to render the book; run each as ``python -m tools.NAME``."""

"""Models: bundled ones, folders, the Hugging Face hub, and model cards."""

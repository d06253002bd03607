"""Tokenizers: CLIP's own (`tokenizer`) and an adapter for Hugging Face's (`huggingface`)."""

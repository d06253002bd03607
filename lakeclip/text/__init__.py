"""Captions to token ids: CLIP's own tokenizer (`tokenizer`) and the door for Hugging Face's (`huggingface`)."""

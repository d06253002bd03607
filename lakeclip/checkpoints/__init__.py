"""Trained models on disk.

native       lakeclip's own checkpoints, which know where they came from
layouts      weights of other makers by name: openai:FILE, open_clip:FILE
openai, open_clip    one layout each: its names, and what it cannot say
huggingface  … and a folder for transformers, with processor and tokenizer
exports      a model in the layout of others, read back and compared
foreign      what those share: sizes out of shapes, and the model, for images of another size too
file         any of their files, read without running code from it
torchscript  … the archives that OpenAI releases
fit          whether weights fit a model
"""

"""Read and write trained models.

native       lakeclip's own checkpoints, which include their lineage
layouts      weights of other projects by name: openai:FILE, open_clip:FILE, huggingface:FOLDER
openai, open_clip    one layout each: its key names, and the settings that it does not store
huggingface  the same for transformers: a folder with processor and tokenizer
exports      a model written in another layout, read back and compared
export_programs      both towers as ONNX or torch.export programs
convert      code that the layouts share: infer sizes from shapes, build the model, also for other image sizes
file         weight files of any kind, read without running code from them
torchscript  the same for the archives that OpenAI releases
folder       the layout of a run folder
match        comparison of weights with a model's state dict
"""

"""The models, in pure torch and OpenAI's parameter layout.

zoo                 names and YAML files → `ModelConfig` → `CLIP`, and what each costs
clip                `CLIP`: the two towers, the text embedding, the temperature
vision_transformer  image tower, patches (ViT-*)
resnet              image tower, convolutions and attention pooling (RN*)
text_transformer    text tower's blocks
transformer         the block that both transformers are made of
dual_encoder        `DualEncoder`: the same, from an image and a text encoder that the user brings
pretrained          such encoders by name, from the libraries that hold pretrained ones
"""

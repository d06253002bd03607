"""The models, in pure torch and OpenAI's parameter layout.

zoo                       model names and YAML files → `ModelConfig` → `CLIP`; parameter and FLOP counts
clip                      `CLIP`: the two towers, the text embedding, the logit scale
vision_transformer        image tower with patches (ViT-*)
resnet                    image tower with convolutions and attention pooling (RN*)
text_transformer          blocks of the text tower, captions without padding
transformer               the residual attention block of both transformers
dual_encoder              `DualEncoder`: CLIP from an image encoder and a text encoder of the user's own
pretrained                pretrained towers by name, from torchvision, timm and transformers
layers                    the layers of a tower, for freezing and layer-wise learning rates
activation_checkpointing  activations recomputed in the backward pass
bfloat16                  conversion to bfloat16 for encoding
"""

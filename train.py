"""The seed's door to training from scratch: `python train.py --model_name RN50 --folder data_dir --batchsize 512`."""

from lakeclip.compat.train_clip_cli import train_main

if __name__ == "__main__":
    train_main()

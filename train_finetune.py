"""The seed's door to fine-tuning: `python train_finetune.py --folder data_dir --batchsize 512`."""

from lakeclip.compat.train_clip_cli import finetune_main

if __name__ == "__main__":
    finetune_main()

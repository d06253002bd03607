"""The training step, what it optimises with, and the run around it.

module      the training step
microbatch  how a batch that does not fit is embedded in parts and compared whole
gradients   norms, agreed between the processes, and clipping
guard       steps that are not taken
optimizers  Adam's groups and learning rates; `adam/` for states in fewer bits
schedule    the learning rate over a run
finetune    the step of fine-tuning; teacher, tuning, starts: what it has besides
run         a whole run, from a configuration to a folder; parts, trainer, callbacks, checks, sharding
planning/   what a run is going to be, before it is begun
watching/   curves, speed, memory, and scores on the way
recovery/   checkpoints, faults, lineage, repetition
"""

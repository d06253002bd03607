"""Training: the LightningModule, its optimisers and callbacks, and whole runs.

module        the training step (`ContrastiveModule`, `CLIPWrapper`)
finetune      fine-tuning of pretrained towers: `pretrained` loads them, `freeze` and `lora` adapt them, `teacher`
grad_cache    micro-batches with the gradients of the whole batch
gradients     gradient norms, reduced over the processes, and clipping
guard         skipped steps and rollback; `loss_spikes` detects spikes
optim/        AdamW, low-precision states, the learning rate schedule
sharding      FSDP2
build         modules and data modules from a configuration; `checks` refuses impossible ones
resume/       resumes: settings that may change, the plan of the rest, the lock of a run's folder
progress      steps done and to come, from which the schedule follows
run           a whole run, from a configuration to a folder; `trainer`, `loggers`, `errors`
callbacks/    checkpoints, averaged weights, evaluation, throughput, progress, stopping, rank watchdog
dry_run/      plan of a run before it starts; `flops` and `memory` measure
reproduce     repetition of a run, replay of its batches
"""

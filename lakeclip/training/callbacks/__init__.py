"""Lightning callbacks: checkpoints, averaged weights, evaluation, throughput, progress, stopping, rank watchdog."""

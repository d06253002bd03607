"""Evaluation of models: scores on labelled or captioned images of a lake.

run               `evaluate_zeroshot`, `evaluate_retrieval`, `evaluate_probe`, `evaluate_robustness`
registry          `EVALUATIONS`: scores by name; other packages can add to it
evaluator         registered scores of a model, during training and in `evaluate`
encode            images and texts to unit-length features
labels            a label column to class names and targets
labelled          labelled rows as features and targets
prompts           class names to prompts
classifier        prompts to a zero-shot classifier, and its predictions
classifier_cache  classifiers on disk, for repeated evaluations
zeroshot          zero-shot classification
calibration       confidence compared with accuracy
retrieval         retrieval of captions by images, and of images by captions
probe             linear probe on image features
robustness        zero-shot accuracy on corrupted copies and on other lakes
corruptions       image corruptions
forgetting        scores before and after fine-tuning, and on interpolated weights
significance      tests and confidence intervals
distributed       division of an evaluation between processes
"""

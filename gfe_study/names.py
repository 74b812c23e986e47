"""Names of metrics, tags and artifacts: the only place they are spelled.

Losses are means over test (or validation, or training) images of the cross-entropy per pixel, in nats.
"""

from typing import Final

# Metrics: the same under MLflow, Ray and `--json`. The MLflow step of every one is `images_seen`.
IMAGES_SEEN: Final = "images_seen"
IMAGES_USED: Final = "images_used"
"""Training images counted once for every weight update they took part in; `images_seen` counts them once."""
TRAIN_LOSS: Final = "train_loss"
VAL_LOSS: Final = "val_loss"
TEST_LOSS: Final = "test_loss"
MIXED: Final = "mixed"
MIXED_TEST_LOSS: Final = f"{MIXED}_{TEST_LOSS}"
NFE_FORWARD: Final = "nfe_forward"
"""Decoder evaluations per training image, mean over all images seen so far."""
NFE_BACKWARD: Final = "nfe_backward"
"""Decoder pullbacks per training image, mean over all images seen so far."""
ENCODE_NFE: Final = "encode_nfe"
"""Decoder evaluations and pullbacks spent on encoding, per test image."""
TRAIN_SECONDS: Final = "train_seconds"
"""Seconds spent in training updates since the start of the trial, evaluation excluded."""
ENCODE_SECONDS: Final = "encode_seconds"
"""Seconds it took to encode and decode the test images at this evaluation."""
OPTIMISER_STEPS: Final = "optimiser_steps"
DIVERGED: Final = "diverged"

COUNTS: Final = (IMAGES_SEEN, IMAGES_USED, OPTIMISER_STEPS, DIVERGED)
"""Metrics that are whole numbers."""

# Tags of a trial's MLflow run.
FINGERPRINT: Final = "fingerprint"
GROUP: Final = "group"
SEED: Final = "seed"
ARM: Final = "arm"
METHOD: Final = "method"
PRESET: Final = "preset"
STUDY: Final = "study"
SPACE: Final = "space"
SPACE_SHA256: Final = "space_sha256"
DATASET: Final = "dataset"
DATASET_SHA256: Final = "dataset_sha256"
ENTROPY_FLOOR: Final = "entropy_floor"
GIT_COMMIT: Final = "git_commit"
GIT_DIRTY: Final = "git_dirty"
DEVICE: Final = "device"
HOST: Final = "host"
FAILURE: Final = "failure"
BEST_FINGERPRINT: Final = "best_fingerprint"
BEST_VALUE: Final = "best_value"
ROLE: Final = "role"
ROLE_STUDY: Final = "study"
ROLE_TRIAL: Final = "trial"

# Files of a trial, and its MLflow artifacts.
TRIAL_FILE: Final = "trial.yaml"
BEST_CHECKPOINT: Final = "best.pt"
CHECKPOINT: Final = "checkpoint.pt"
PREVIOUS_CHECKPOINT: Final = "checkpoint.previous.pt"
RECONSTRUCTION: Final = "reconstruction.png"

"""Names of metrics, tags and artifacts: the only place they are spelled.

Losses are means over test (or validation, or training) images of the cross-entropy per pixel, in nats.
"""

from typing import Final

# Metrics: the same under MLflow, Ray and `--json`. The MLflow step of every one is `images_seen`.
IMAGES_SEEN: Final = "images_seen"
IMAGES_USED: Final = "images_used"
"""Training images counted once for every weight update they took part in; `images_seen` counts them once."""
UNIQUE_IMAGES: Final = "unique_images"
"""Different training images seen: `images_seen` until the training set is exhausted, its size from then on."""
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
ENCODE_EVALUATIONS: Final = "encode_evaluations"
"""Decoder evaluations spent on encoding, per test image, pullbacks not counted: what a solver's `max_nfe` caps."""
TRAIN_SECONDS: Final = "train_seconds"
"""Seconds spent in training updates since the start of the trial, evaluation excluded."""
ENCODE_SECONDS: Final = "encode_seconds"
"""Seconds it took to encode and decode the test images at this evaluation."""
EVAL_SECONDS: Final = "eval_seconds"
"""Seconds spent in evaluation since the start of the trial."""
LATENT_ENTROPY: Final = "latent_entropy"
"""Of the whitened latents of the test images, nats, by a kernel density estimate."""
NORMAL_ENTROPY: Final = "normal_entropy"
"""The same of as many samples of a standard normal."""
ENTROPY_GAP: Final = "entropy_gap"
"""`normal_entropy` − `latent_entropy`: 0 of latents that fill the standard normal."""
RECONSTRUCTION_AUROC: Final = "reconstruction_auroc"
"""Of telling test images of the held-out class by their reconstruction error alone."""
NOVELTY_AUROC: Final = "novelty_auroc"
"""Of telling test images of the held-out class by their negative log-probability."""
FID: Final = "fid"
"""Fréchet distance of decoded samples from test images in the Inception network's features."""
OPTIMISER_STEPS: Final = "optimiser_steps"
DIVERGED: Final = "diverged"

COUNTS: Final = (IMAGES_SEEN, IMAGES_USED, UNIQUE_IMAGES, OPTIMISER_STEPS, DIVERGED)
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
GFE_STUDY_VERSION: Final = "gfe_study_version"
GIT_COMMIT: Final = "git_commit"
GIT_DIRTY: Final = "git_dirty"
DEVICE: Final = "device"
GPUS: Final = "gpus"
"""Ids of the GPUs that Ray granted, if any."""
HOST: Final = "host"
FAILURE: Final = "failure"
STOPPED_EARLY: Final = "stopped_early"
REUSED_FROM: Final = "reused_from"
"""The study that ran this trial, where it was not this one."""
STAGE: Final = "stage"
NUMBER: Final = "number"
"""Of the configuration, in the order in which its arm's were asked."""
SHARED_BY: Final = "shared_by"
"""JSON list of [stage, arm, number]: the configurations that a trial belongs to, where they are several."""
VERSIONS: Final = "versions"
DECODER: Final = "decoder"
"""Whether `KEPT_FILES` are among the run's artifacts: `kept`, or `removed` since others of its arm are better."""
BEST_FINGERPRINT: Final = "best_fingerprint"
BEST_VALUE: Final = "best_value"
ROLE: Final = "role"
ROLE_STUDY: Final = "study"
ROLE_TRIAL: Final = "trial"
ROLE_SUPERSEDED: Final = "superseded trial"

# Files of a trial, and its MLflow artifacts.
TRIALS_FOLDER: Final = "trials"
"""Of a study's folder: holds one folder per trial, named by its fingerprint."""
TRIAL_FILE: Final = "trial.yaml"
BEST_CHECKPOINT: Final = "best.pt"
CHECKPOINT: Final = "checkpoint.pt"
PREVIOUS_CHECKPOINT: Final = "checkpoint.previous.pt"
RECONSTRUCTION: Final = "reconstruction.png"
SNAPSHOTS: Final = "snapshots.npz"
"""Latents, reconstructions and flows of test images at a few moments of training."""
KEPT_FILES: Final = (BEST_CHECKPOINT, SNAPSHOTS)
"""Kept of the best trials only."""


def classifier_distance(dataset: str, kind: str = "") -> str:
    """Fréchet distance of decoded samples from test images in the features of this project's classifier.

    Args:
        dataset: whose classifier it is.
        kind: of other images than samples: `reconstruction`, or `floor` for validation images.
    """
    return f"fd_{dataset}_classifier" + (f"_{kind}" if kind else "")

"""Names of metrics, tags and artifacts; no other module spells them out.

A loss is the cross-entropy per pixel, in nats, averaged over the test, validation or training images.
"""

from typing import Final

DATA_DIR_VARIABLE: Final = "GFE_DATA_DIR"
"""Environment variable: the folder that holds datasets."""

# Metrics have the same names in MLflow, Ray and `--json`. The MLflow step of every metric is `images_seen`.
IMAGES_SEEN: Final = "images_seen"
IMAGES_USED: Final = "images_used"
"""Training images, counted once per weight update that used them; `images_seen` counts them once per batch."""
UNIQUE_IMAGES: Final = "unique_images"
"""Distinct training images seen: `images_seen` during the first epoch, the size of the training set after it."""
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
"""Seconds spent in training updates since the start of the trial, without evaluation."""
ENCODE_SECONDS: Final = "encode_seconds"
"""Seconds spent encoding and decoding the test images in this evaluation."""
EVAL_SECONDS: Final = "eval_seconds"
"""Seconds spent in evaluation since the start of the trial."""
LATENT_ENTROPY: Final = "latent_entropy"
"""Entropy of the whitened latents of the test images in nats, by a kernel density estimate."""
NORMAL_ENTROPY: Final = "normal_entropy"
"""The same estimate for an equal number of samples of a standard normal."""
ENTROPY_GAP: Final = "entropy_gap"
"""`normal_entropy` − `latent_entropy`; 0 if the latents are distributed as a standard normal."""
RECONSTRUCTION_AUROC: Final = "reconstruction_auroc"
"""AUROC of detecting test images of the held-out class by their reconstruction error alone."""
NOVELTY_AUROC: Final = "novelty_auroc"
"""AUROC of detecting test images of the held-out class by their negative log-probability."""
FID: Final = "fid"
"""Fréchet distance between decoded samples and test images in the features of the Inception network."""
OPTIMISER_STEPS: Final = "optimiser_steps"
DIVERGED: Final = "diverged"

COUNTS: Final = (IMAGES_SEEN, IMAGES_USED, UNIQUE_IMAGES, OPTIMISER_STEPS, DIVERGED)
"""Metrics with integer values."""

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
"""Ids of the GPUs that Ray assigned, if any."""
HOST: Final = "host"
THREADS: Final = "threads"
"""Number of threads that a trial computes with."""
SIDE_BY_SIDE: Final = "side_by_side"
"""How many trials may run at a time in the start of the study that ran the trial."""
FAILURE: Final = "failure"
STOPPED_EARLY: Final = "stopped_early"
REUSED_FROM: Final = "reused_from"
"""The study that ran this trial, if another study did."""
STAGE: Final = "stage"
NUMBER: Final = "number"
"""Number of the configuration within its arm, in the order in which they were suggested."""
SHARED_BY: Final = "shared_by"
"""JSON list of [stage, arm, number]: the configurations that a trial belongs to, if there are several."""
VERSIONS: Final = "versions"
DECODER: Final = "decoder"
"""Whether the run's artifacts include `KEPT_FILES`: `kept`, or `removed` if other trials of its arm are better."""
BEST_FINGERPRINT: Final = "best_fingerprint"
BEST_VALUE: Final = "best_value"
ROLE: Final = "role"
ROLE_STUDY: Final = "study"
ROLE_TRIAL: Final = "trial"
ROLE_SUPERSEDED: Final = "superseded trial"
"""The trial was run again, and has another run."""
ROLE_FORMER: Final = "former trial"
"""The trial no longer belongs to the study, because the study's file changed; its data is kept."""
LEVELLED: Final = "levelled"
"""Tag of a study's own run: SHA-256 of the declaration that the names and tags of its trials agree with."""

# Files of a trial, which are also its MLflow artifacts.
TRIALS_FOLDER: Final = "trials"
"""Subfolder of a study's folder; it holds one folder per trial, named by the trial's fingerprint."""
TRIAL_FILE: Final = "trial.yaml"
BEST_CHECKPOINT: Final = "best.pt"
CHECKPOINT: Final = "checkpoint.pt"
PREVIOUS_CHECKPOINT: Final = "checkpoint.previous.pt"
RECONSTRUCTION: Final = "reconstruction.png"
SNAPSHOTS: Final = "snapshots.npz"
"""Latents, reconstructions and flows of test images at several points of training."""
KEPT_FILES: Final = (BEST_CHECKPOINT, SNAPSHOTS)
"""Files that are kept for the best trials only."""


def classifier_distance(dataset: str, kind: str = "") -> str:
    """Name the metric: the Fréchet distance between decoded samples and test images in a classifier's features.

    Args:
        dataset: the dataset that this project's classifier was trained on.
        kind: images to use instead of samples: `reconstruction`, or `floor` for validation images.
    """
    return f"fd_{dataset}_classifier" + (f"_{kind}" if kind else "")

"""Gradient flow encoding as an estimator of scikit-learn.

Shapes: N samples, D features, L latents.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from gfe_study.config import InputError, Trial, to_yaml
from gfe_study.data.base import check_data, fitted_scale
from gfe_study.data.split import Array, Scale, Shape, Split, Splits
from gfe_study.io.checkpoint import read_checkpoint, write_checkpoint
from gfe_study.likelihoods.base import Observed
from gfe_study.measures.coverage import factor_of, ratios
from gfe_study.measures.errors import errors
from gfe_study.methods.base import Learner
from gfe_study.metrics import CALIBRATION, DIVERGED, R2, TRAIN_LOSS
from gfe_study.posterior import Posterior, posterior_of
from gfe_study.study.artifacts import read_learner
from gfe_study.training import ENCODE_BATCH, train
from gfe_study.view.progress import bar

LEAST_SAMPLES = 30_000
"""Samples seen in training, repetitions counted, unless `epochs` is given."""
RAMP = 0.3
"""Share of training over which the noise of the latents reaches its full width."""
LEARNED: dict[str, dict[str, str]] = {
    "gaussian": {"name": "gaussian", "sigma": "learned"},
    "student_t": {"name": "student_t", "scale": "learned"},
}
CALIBRATED, HELD_OUT, FEWEST = 500, 0.05, 100
"""To calibrate error bars, 5 % of the observed values of at most 500 samples are held out; fewer than 100 values would
say too little."""
EVALUATED = 256
"""Training samples that are encoded at the end of training."""


class GradientFlowEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """An autoencoder without an encoder: the latent of a sample is found by following a gradient flow.

    Samples may have missing values: NaN, or what a masked array masks. They have no influence, and `impute` fills them
    in. No sample is held out; a pipeline or `GridSearchCV` does that. If there are gaps, 5 % of what is observed of up
    to 500 samples is not trained on, to calibrate standard deviations: some samples lose what another one lacks.

    Args:
        n_components: latent dimensions.
        likelihood: `gaussian`, `bernoulli` (values in [0, 1]), `poisson` (counts) or `student_t`, or its settings. By
            name alone, the σ of `gaussian` and the scale of `student_t` are learned.
        solver: what finds latents, by name or with settings; None takes that of `preset: holes`.
        hidden_layer_sizes: widths of the decoder's hidden layers, from the latent outwards.
        epochs: passes over the samples; None: 20, or as many as make up 30,000 samples.
        batch_size: samples per batch.
        learning_rate: of Adam at the start; it falls to zero. A batch's loss is the sum over its samples.
        scale: `standard`, `minmax` or `none`; None is `standard` for `gaussian` and `student_t`, else `none`.
        prior_precision: λ of a normal prior of the latents, which holds them together where samples are few or have
            holes, and which standard deviations need; None: no prior.
        random_state: seeds the initial weights and the order of the samples.
        device: where to train, like `cuda`.
        verbose: whether to show a progress bar.

    Attributes:
        trial_: the configuration that was trained.
        loss_: mean training loss since the last evaluation, nats per observed value.
        n_iter_: passes over the samples.
        calibration_: what standard deviations of values are multiplied by, so that 95 % of the values that were held
            out lie within 1.96 of them; 1 if none were.
    """

    def __init__(
        self,
        n_components: int = 40,
        *,
        likelihood: str | Mapping[str, Any] = "gaussian",
        solver: str | Mapping[str, Any] | None = None,
        hidden_layer_sizes: Sequence[int] = (600,),
        epochs: int | None = None,
        batch_size: int = 50,
        learning_rate: float = 1e-2,
        scale: Literal["standard", "minmax", "none"] | None = None,
        prior_precision: float | None = 1.0,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.likelihood = likelihood
        self.solver = solver
        self.hidden_layer_sizes = hidden_layer_sizes
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.scale = scale
        self.prior_precision = prior_precision
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train a decoder on samples X, shape (N, D); y is ignored.

        Raises:
            ValueError: a setting is invalid, a value is outside the likelihood's domain, or training diverges.

        Warns:
            UserWarning: a feature has no observed value at all. `impute` leaves it missing.
        """
        values_ND = self._validated(X, reset=True)
        self._seen_D = np.asarray((~np.isnan(values_ND)).any(0))
        if unseen := int((~self._seen_D).sum()):
            text = f"{unseen} of {values_ND.shape[1]} features have no observed value, and stay missing"
            warnings.warn(text, stacklevel=2)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.trial_ = trial = self._trial(len(values_ND), seed)
        split = _split(values_ND, Scale())
        shape = Shape(1, (values_ND.shape[1],))
        scaled = replace(split, scale=fitted_scale(trial.data.scale or "none", Splits(split, split, split, shape)))
        check_data(trial, Splits(scaled, scaled, scaled, shape))
        scaled, held = _held_out(scaled, seed) if self.prior_precision is not None else (scaled, None)
        splits = Splits(scaled, scaled, scaled, shape)
        with torch.random.fork_rng(), bar(trial.budget.images, "samples", bool(self.verbose)) as advance:
            for step in train(trial, splits, device=self.device):
                advance(step.images_seen)
                last = step
        assert last.metrics is not None
        if last.metrics[DIVERGED]:
            raise InputError("training diverged; allowed: a smaller learning_rate")
        self.loss_ = last.metrics[TRAIN_LOSS]
        self.n_iter_ = self._epochs(len(values_ND))
        self.calibration_ = 1.0 if held is None else _calibration(last.state.learner, held)
        self._keep(last.state.learner, scaled.scale)
        return self

    def transform(self, X: Any, return_std: bool = False) -> Any:
        """Return the latents of samples, shape (N, L); NaN in X is a missing value.

        With `return_std` also their standard deviations, shape (N, L), by Laplace's approximation.

        Raises:
            ValueError: standard deviations are asked for without `prior_precision`.
        """
        check_is_fitted(self)
        split = self._new(X)
        latent_NL = self._encoded(split)
        if not return_std:
            return latent_NL.cpu().numpy()
        spread = [known.covariance_BLL.diagonal(dim1=1, dim2=2).sqrt() for known in self._known(split, latent_NL)]
        return latent_NL.cpu().numpy(), torch.cat(spread).cpu().numpy()

    def impute(self, X: Any, return_std: bool = False) -> Any:
        """Return samples with their missing values filled in from their reconstructions, shape (N, D).

        With `return_std` also the standard deviation of every value that was filled in, 0 where one was observed. Of a
        feature that was never observed in training, missing values stay NaN.

        Raises:
            ValueError: standard deviations are asked for without `prior_precision`.
        """
        check_is_fitted(self)
        given_ND = self._validated(X, reset=False)
        split = self._known_in(given_ND)
        latent_NL = self._encoded(split)
        missing_ND = np.isnan(given_ND)
        decoded_ND = np.where(self._seen_D, self.inverse_transform(latent_NL.cpu().numpy()), np.nan)
        filled_ND = np.where(missing_ND, decoded_ND, given_ND)
        if not return_std:
            return filled_ND
        std = torch.cat([self._scale.stretch(known.std_BD) for known in self._known(split, latent_NL)])
        std_ND = np.where(self._seen_D, self.calibration_ * std.cpu().numpy(), np.nan)
        return filled_ND, np.where(missing_ND, std_ND, 0.0)

    def inverse_transform(self, X: Any) -> Array:
        """Return the reconstructions of latents X, shape (N, D), in the units of the samples."""
        check_is_fitted(self)
        latent_NL = torch.as_tensor(np.asarray(X, dtype=np.float64), device=self._device)
        return self._scale.undo(self._learner.decode(latent_NL)).cpu().numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Return the share of the variance of X that reconstructions explain, over all observed values: R².

        It is the metric `r2` of a study; higher is better, 1 is perfect.
        """
        check_is_fitted(self)
        split = self._new(X)
        return errors(self._learner, split, self._encoded(split))[R2]

    def save(self, path: str | Path) -> None:
        """Write a file for `load`, from which `gfe-study encode` can encode, too."""
        check_is_fitted(self)
        networks = {name: values.float() for name, values in self._learner.networks.state_dict().items()}
        content = {
            "trial": to_yaml(self.trial_.dump()),
            "networks": networks,
            "shape": asdict(self._learner.shape),
            "scale": self._scale.state_dict(),
            "seen": torch.from_numpy(self._seen_D),
            "metrics": {TRAIN_LOSS: self.loss_, CALIBRATION: self.calibration_},
            "estimator": {
                **self.get_params(),
                "random_state": None,
                "feature_names": self._names(),
                "n_iter": self.n_iter_,
            },
        }
        write_checkpoint(Path(path), content)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """Read an estimator that `save` wrote. Raises `InputError` if that is impossible."""
        learner, shape, scale, seen_D = read_learner(Path(path), {}, torch.device(device))
        content = read_checkpoint(Path(path))
        if "estimator" not in content:
            raise InputError(f"{path}: holds no estimator; allowed: a file that GradientFlowEncoder.save wrote")
        names, epochs = (content["estimator"].pop(name) for name in ("feature_names", "n_iter"))
        estimator = cls(**{**content["estimator"], "device": device})
        estimator.trial_, estimator.loss_ = learner.trial, content["metrics"][TRAIN_LOSS]
        estimator.calibration_ = content["metrics"].get(CALIBRATION, 1.0)
        estimator.n_iter_, estimator.n_features_in_ = epochs, shape.size
        if names is not None:
            estimator.feature_names_in_ = np.array(names, dtype=object)
        estimator._seen_D = np.ones(shape.size, bool) if seen_D is None else seen_D.cpu().numpy()
        estimator._keep(learner, scale)
        return estimator

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _trial(self, count: int, seed: int) -> Trial:
        solver = {} if self.solver is None else {"solver": self.solver}
        images = self._epochs(count) * count
        learned = LEARNED.get(self.likelihood) if isinstance(self.likelihood, str) else None
        noise = None if self.prior_precision is None else {"ramp_images": round(RAMP * images)}
        data: dict[str, Any] = {"name": "arrays", "path": "X"}
        settings = {
            "preset": "holes",
            "likelihood": learned or self.likelihood,
            "method": {"name": "gfe", "posterior_noise": noise},
            **solver,
            "model": {
                "latent_dim": self.n_components,
                "hidden": list(self.hidden_layer_sizes),
                "skip": True if len(self.hidden_layer_sizes) else None,
            },
            "optim": {"lr": self.learning_rate, "batch_size": self.batch_size},
            "prior_precision": self.prior_precision,
            "data": data if self.scale is None else {**data, "scale": self.scale},
            "budget": {"images": images},
            "eval": {
                "schedule": [images],
                "val_images": EVALUATED,
                "test_images": EVALUATED,
                "mixed": False,
                "common": False,
            },
            "seed": seed,
        }
        return Trial.build(settings, where=type(self).__name__)

    def _epochs(self, count: int) -> int:
        return max(20, -(-LEAST_SAMPLES // count)) if self.epochs is None else self.epochs

    def _validated(self, X: Any, *, reset: bool) -> Array:
        if isinstance(X, np.ma.MaskedArray):  # scikit-learn would take what lies under the mask
            X = np.ma.filled(X.astype(np.float64), np.nan)
        values: Array = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=reset)
        return values

    def _new(self, X: Any) -> Split:
        return self._known_in(self._validated(X, reset=False))

    def _known_in(self, values_ND: Array) -> Split:
        """New samples. What was never observed in training tells nothing of a latent: no decoder has learned it."""
        return _split(np.where(self._seen_D, values_ND, np.nan), self._scale)

    def _encoded(self, split: Split) -> Tensor:
        return torch.cat([self._learner.encode(target).latent_BL for target in self._targets(split)])

    def _targets(self, split: Split) -> Iterator[Observed]:
        """In float64, so that a latent does not depend on the other samples of its batch by rounding."""
        for start in range(0, len(split), ENCODE_BATCH):
            yield split.batch(slice(start, start + ENCODE_BATCH), self._device).double()

    def _known(self, split: Split, latent_NL: Tensor) -> Iterator[Posterior]:
        if self.prior_precision is None:
            raise InputError(
                "prior_precision: given None with return_std, and without a prior latents may lie anywhere; "
                "allowed: a positive number"
            )
        for target, latent_BL in zip(self._targets(split), latent_NL.split(ENCODE_BATCH), strict=True):
            yield posterior_of(self._learner, target, latent_BL)

    def _keep(self, learner: Learner, scale: Scale) -> None:
        learner.networks.double()
        learner.optimiser.state.clear()
        self._learner, self._scale = learner, scale
        self._n_features_out = self.trial_.model.latent_dim

    def _names(self) -> list[str] | None:
        names = getattr(self, "feature_names_in_", None)
        return None if names is None else [str(name) for name in names]

    @property
    def _device(self) -> torch.device:
        return next(self._learner.networks.parameters()).device


def _split(values_ND: Array, scale: Scale) -> Split:
    observed_ND = ~np.isnan(values_ND)
    return Split(values_ND, observed_ND=None if observed_ND.all() else observed_ND, scale=scale)


def _held_out(split: Split, seed: int) -> tuple[Split, Split | None]:
    """Samples without some observed values, and those of them that have lost some, which remember them; None: none.

    A sample loses what another one lacks: the interval of a value in the middle of a gap is another than that of one
    among neighbours, and gaps are seldom single values. Nothing is taken where no gap is, and no value for good.
    """
    if split.observed_ND is None:
        return split, None
    draw = np.random.default_rng(seed)
    rows = draw.permutation(len(split))[:CALIBRATED]
    donors = np.flatnonzero(~split.observed_ND.all(1))
    known_RD = split.observed_ND[rows]
    gone_RD = known_RD & ~split.observed_ND[draw.choice(donors, len(rows))]
    gone_RD[~(known_RD & ~gone_RD).any(1)] = False  # nothing would be left of these
    before_R = gone_RD.sum(1).cumsum() - gone_RD.sum(1)
    gone_RD[before_R >= HELD_OUT * known_RD.sum()] = False
    if gone_RD.sum() < FEWEST:
        return split, None
    gone_ND = np.zeros(split.observed_ND.shape, bool)
    gone_ND[rows] = gone_RD
    gone_ND[:, ~(split.observed_ND & ~gone_ND).any(0)] = False  # the last that is known of a value
    without = replace(split, observed_ND=split.observed_ND & ~gone_ND, withheld_ND=gone_ND)
    return replace(without, withheld_ND=None), without.take(np.flatnonzero(gone_ND.any(1)))


def _calibration(learner: Learner, held: Split) -> float:
    device = next(learner.networks.parameters()).device
    starts = range(0, len(held), ENCODE_BATCH)
    batches = (held.batch(slice(start, start + ENCODE_BATCH), device) for start in starts)
    return factor_of(ratios(learner, held, torch.cat([learner.encode(batch).latent_BL for batch in batches])))

"""gfe-study's contract tests, on the components of this package."""

import pytest
from gfe_study_example.conjugate import ConjugateGradients
from gfe_study_example.heavy_ball import HeavyBall
from gfe_study_example.laplace import Laplace
from gfe_study_example.rings import Rings

from gfe_study.config import Component
from gfe_study.testing import check


@pytest.mark.parametrize("component", [ConjugateGradients, HeavyBall, Laplace, Rings])
def test_the_contract_is_kept(component: type[Component]) -> None:
    check(component)

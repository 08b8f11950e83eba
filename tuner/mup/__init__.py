"""Any PyTorch model under a parametrization: what grows, by which rules it is rescaled, and proof that it works."""

from tuner.mup.check import Coordinates, coordinate_check
from tuner.mup.export import export
from tuner.mup.plan import Plan, plan
from tuner.mup.roles import Role, Roles, roles
from tuner.mup.rules import Rule

__all__ = ["Coordinates", "Plan", "Role", "Roles", "Rule", "coordinate_check", "export", "plan", "roles"]

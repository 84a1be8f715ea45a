from meprop_bench.api.measure import compare as compare
from meprop_bench.api.measure import profile as profile
from meprop_bench.api.results import load as load
from meprop_bench.api.tuned import tune as tune
from meprop_bench.errors import UserError as UserError
from meprop_bench.nn import convert as convert
from meprop_bench.nn import revert as revert
from meprop_bench.training import Training as Training

__version__: str

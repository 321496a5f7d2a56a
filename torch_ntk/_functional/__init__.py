"""A module as a pure function of its parameters, which is evaluated without side effects.

`unwrap` removes wrappers such as `torch.compile`, and `refuse_unsupported` raises for modules that
cannot be evaluated. `quiet` is the context in which an evaluation leaves no trace. `ModelFunction`
is the pure function. `failure` turns an error from inside `torch.func` into one that says what was
attempted.
"""

from ._agree import agree as agree
from ._batch import Batch as Batch
from ._call import call_model as call_model
from ._call import call_with as call_with
from ._call import evaluating_on as evaluating_on
from ._call import refused_arguments as refused_arguments
from ._failure import failure as failure
from ._failure import first_line as first_line
from ._faithful_copy import Origin as Origin
from ._faithful_copy import Watch as Watch
from ._faithful_copy import another_reference as another_reference
from ._faithful_copy import check_copy as check_copy
from ._faithful_copy import faithful_copy as faithful_copy
from ._faithful_copy import refuse_closures as refuse_closures
from ._function import ModelFunction as ModelFunction
from ._function import model_function as model_function
from ._graph import leaves_reached as leaves_reached
from ._graph import nodes_of as nodes_of
from ._graph import tensors_in as tensors_in
from ._kept_tensors import refuse_kept_tensors as refuse_kept_tensors
from ._opened import opened as opened
from ._parameters import copied as copied
from ._plain import Around as Around
from ._plain import PlainModel as PlainModel
from ._plain import PlainPass as PlainPass
from ._quiet import after_evaluation as after_evaluation
from ._quiet import evaluating as evaluating
from ._quiet import forward_hooks_matter as forward_hooks_matter
from ._quiet import has_forward_hooks as has_forward_hooks
from ._quiet import quiet as quiet
from ._quiet import run_forward_hooks as run_forward_hooks
from ._quiet import settings as settings
from ._recurrent import PackedSample as PackedSample
from ._recurrent import is_recurrent as is_recurrent
from ._recurrent import written_out as written_out
from ._refuse import refuse_unsupported as refuse_unsupported
from ._result import coupled_rows_of as coupled_rows_of
from ._result import rows_of as rows_of
from ._result import tensor_of as tensor_of
from ._right_operations import RightOperations as RightOperations
from ._right_operations import call_right as call_right
from ._select import select_parameters as select_parameters
from ._slope import leaves_of as leaves_of
from ._slope import slope as slope
from ._slope import transposed_product as transposed_product
from ._transforming import CannotTransformError as CannotTransformError
from ._transforming import transforming as transforming
from ._unwrap import plain_name as plain_name
from ._unwrap import unwrap as unwrap

"""The tasks: each asks, answers, reads answers and scores them (`base.Task`)."""

from vlm3_jax.errors import UserError
from vlm3_jax.tasks.base import Task
from vlm3_jax.tasks.conversation import ConversationTask
from vlm3_jax.tasks.correspondence import CorrespondenceTask
from vlm3_jax.tasks.depth import DepthTask
from vlm3_jax.tasks.objects import ObjectsTask
from vlm3_jax.tasks.pose import PoseTask

_ALL = (DepthTask(), ObjectsTask(), CorrespondenceTask(), PoseTask(), ConversationTask())
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def get(name: str) -> Task:
    """The task called `name` (a key of `TASKS`). UserError for any other name."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]

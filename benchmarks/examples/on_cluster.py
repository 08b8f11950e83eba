"""A study on a Dask cluster (extra `cluster`): here two workers of this machine, there the scheduler's address.

On Slurm, dask-jobqueue starts such a cluster, one worker a GPU; the study is the same:

    cluster = dask_jobqueue.SLURMCluster(cores=1, memory="64GB", job_extra_directives=["--gres=gpu:1"],
                                         worker_extra_args=["--resources", "GPU=1"])
    cluster.scale(jobs=16)
    with tuner.cluster.Cluster(cluster.scheduler_address, resources={"GPU": 1}) as workers: ...
"""

from distributed import LocalCluster

import tuner
from tuner.cluster import Cluster
from tuner.objective import ObjectiveSource

objective = ObjectiveSource("objectives.quadratic:NoisyQuadratic")  # named, so that every worker makes its own

if __name__ == "__main__":
    local = {"host": "127.0.0.1", "dashboard_address": None, "threads_per_worker": 1, "memory_limit": None}
    with LocalCluster(n_workers=2, **local) as machines, Cluster(machines.scheduler_address) as workers:
        study = tuner.create_study(
            objective=objective,
            target=tuner.Scale(width=2048, batch_size=32),
            proxies=[tuner.Scale(width=n, batch_size=32) for n in (32, 64, 128)],
        )
        study.optimize(budget=0.1, executor=workers)
        print(study.recommend().params)

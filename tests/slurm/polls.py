"""For the runs of the scheduler tests: ask SLURM every second how the jobs are.

After each answer without news the executor plugin waits 10 s longer, and no setting caps that.
"""

import asyncio
import sys

if "--workflow-profile" in sys.orig_argv:  # Snakemake itself, not the jobs that it sends
    from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

    async def sleep(self):
        """In place of the plugin's growing wait."""
        await asyncio.sleep(1)

    RemoteExecutor.sleep = sleep

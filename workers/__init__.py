"""The only room where queue, jobs and backends meet: worker process, supervisor, trainer process."""

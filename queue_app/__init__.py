"""The submitting side: command line, settings, the Celery app, the job store in Redis. Never imports torch."""

"""The engine: schedule, run, commit; the thread it runs on; and who hears of each request."""

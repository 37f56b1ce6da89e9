"""What protects the server from its clients: limits on connections, bodies and JSON, the API key, and the drain.

Nothing here knows an API's fields beyond their sizes; every HTTP API of the server passes through the same guards.
"""

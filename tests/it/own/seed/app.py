# main.py
from fastapi import FastAPI, Response
import os
import socket

app = FastAPI()

@app.get("/")
async def read_root():
    hostname = socket.gethostname()
    return {
        "message": f"Hello from version: {os.getenv('APP_VERSION', 'unknown')}",
        "container_id": os.getenv("HOSTNAME", hostname),
        "hostname": hostname,
    }

@app.get("/healthz")
async def health_check(response: Response):
    if os.getenv("UNHEALTHY"):
        response.status_code = 500
        return {"status": "unhealthy"}
    return {"status": "ok"}

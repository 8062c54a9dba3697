"""A classifier as a web service: MODEL=runs/a uvicorn --app-dir launch serve_fastapi:app

curl --form photo=@photo.jpg localhost:8000/predict    (needs: pip install fastapi uvicorn python-multipart)
"""

import os

from fastapi import FastAPI, HTTPException, UploadFile

import flowers

app = FastAPI()
model = flowers.load(os.environ["MODEL"])


@app.post("/predict")
def predict(photo: UploadFile) -> list[dict]:
    """Classify one photo; FastAPI calls this from many threads, which the model allows."""
    try:
        return [guess._asdict() for guess in model.predict(photo.file).topk]
    except flowers.FlowersError as error:
        raise HTTPException(422, str(error)) from None

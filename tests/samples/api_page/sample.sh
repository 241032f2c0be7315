# Create text removal task
curl --request POST \
  --url https://api.kie.ai/api/v1/flux/kontext/generate \
  --header 'Authorization: Bearer YOUR_API_KEY' \
  --header 'Content-Type: application/json' \
  --data '{
    "prompt": "Remove all text from this image while preserving the background",
    "inputImage": "https://example.com/image-with-text.jpg",
    "model": "flux-kontext-pro",
    "aspectRatio": "16:9",
    "enableTranslation": true,
    "safetyTolerance": 2
  }'
# Query task status
curl --request GET \
  --url "https://api.kie.ai/api/v1/flux/kontext/record-info?taskId=task12345" \
  --header 'Authorization: Bearer YOUR_API_KEY'

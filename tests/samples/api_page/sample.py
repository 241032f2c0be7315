import requests
import time
from typing import Optional, Dict, Any


class FluxKontextAPI:
    def __init__(self, api_key: str):
        self.api_key = api_key
        self.base_url = "https://api.kie.ai/api/v1/flux/kontext"
        self.headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}

    def remove_text_from_image(
        self,
        input_image: str,
        prompt: str = "Remove all text from this image while preserving the background",
    ) -> str:
        """Create text removal task"""
        payload = {
            "prompt": prompt,
            "inputImage": input_image,
            "model": "flux-kontext-pro",
            "aspectRatio": "16:9",
            "enableTranslation": True,
            "safetyTolerance": 2,
        }
        try:
            response = requests.post(f"{self.base_url}/generate", json=payload, headers=self.headers)
            response.raise_for_status()
            result = response.json()
            if result["code"] != 200:
                raise Exception(f"Generation failed: {result['msg']}")
            return result["data"]["taskId"]
        except requests.exceptions.RequestException as e:
            print(f"API request error: {e}")
            raise

    def get_task_status(self, task_id: str) -> Dict[str, Any]:
        """Query task status"""
        try:
            response = requests.get(
                f"{self.base_url}/record-info", params={"taskId": task_id}, headers=self.headers
            )
            response.raise_for_status()
            result = response.json()
            if result["code"] != 200:
                raise Exception(f"Status query failed: {result['msg']}")
            return result["data"]
        except requests.exceptions.RequestException as e:
            print(f"Status query error: {e}")
            raise

    def wait_for_completion(self, task_id: str, max_wait_time: int = 300) -> Dict[str, Any]:
        """Wait for task completion"""
        start_time = time.time()
        while time.time() - start_time < max_wait_time:
            try:
                status = self.get_task_status(task_id)
                print(f"Task {task_id} status: {status['successFlag']}")
                if status["successFlag"] == 1:  # Success
                    print("Task completed successfully!")
                    return status["response"]
                elif status["successFlag"] in [2, 3]:  # Failed
                    raise Exception(f"Task failed: {status.get('errorMessage', 'Unknown error')}")
                # Wait 3 seconds before retry
                time.sleep(3)
            except Exception as e:
                if "Status query failed" in str(e):
                    raise
                print(f"Status query error: {e}")
                time.sleep(3)
        raise Exception("Task timeout")

    def process_image_text_removal(self, input_image: str, prompt: Optional[str] = None) -> Dict[str, Any]:
        """Complete text removal workflow"""
        try:
            print("Starting text removal...")
            if prompt is None:
                prompt = "Remove all text from this image while preserving the background"
            task_id = self.remove_text_from_image(input_image, prompt)
            print(f"Task created: {task_id}")
            result = self.wait_for_completion(task_id)
            print("Text removal completed!")
            print(f"Result image URL: {result['resultImageUrl']}")
            print(f"Original image URL (10 min valid): {result['originImageUrl']}")
            return result
        except Exception as e:
            print(f"Text removal failed: {e}")
            raise


# Usage example
if __name__ == "__main__":
    api = FluxKontextAPI("your_api_key_here")
    try:
        result = api.process_image_text_removal("https://example.com/image-with-text.jpg")
        print("Success! Result image URL:", result["resultImageUrl"])
    except Exception as e:
        print(f"Processing failed: {e}")

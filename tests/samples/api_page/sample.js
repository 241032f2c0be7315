class FluxKontextAPI {
  constructor(apiKey) {
    this.apiKey = apiKey;
    this.baseUrl = 'https://api.kie.ai/api/v1/flux/kontext';
    this.headers = {
      'Authorization': `Bearer ${apiKey}`,
      'Content-Type': 'application/json'
    };
  }
  // Text removal functionality
  async removeTextFromImage(inputImage, prompt = "Remove all text from this image while preserving the background") {
    try {
      const response = await fetch(`${this.baseUrl}/generate`, {
        method: 'POST',
        headers: this.headers,
        body: JSON.stringify({
          prompt,
          inputImage,
          model: 'flux-kontext-pro',
          aspectRatio: '16:9',
          enableTranslation: true,
          safetyTolerance: 2
        })
      });
      const result = await response.json();
      if (result.code !== 200) {
        throw new Error(`Generation failed: ${result.msg}`);
      }
      return result.data.taskId;
    } catch (error) {
      console.error('Error:', error);
      throw error;
    }
  }
  // Query task status
  async getTaskStatus(taskId) {
    try {
      const response = await fetch(
        `${this.baseUrl}/record-info?taskId=${taskId}`,
        { headers: this.headers }
      );
      const result = await response.json();
      if (result.code !== 200) {
        throw new Error(`Status query failed: ${result.msg}`);
      }
      return result.data;
    } catch (error) {
      console.error('Error querying status:', error);
      throw error;
    }
  }
  // Wait for task completion
  async waitForCompletion(taskId, maxWaitTime = 300000) { // 5 minutes
    const startTime = Date.now();
    while (Date.now() - startTime < maxWaitTime) {
      const status = await this.getTaskStatus(taskId);
      console.log(`Task ${taskId} status: ${status.successFlag}`);
      if (status.successFlag === 1) {
        console.log('Task completed successfully');
        return status.response;
      } else if (status.successFlag === 2 || status.successFlag === 3) {
        throw new Error(`Task failed: ${status.errorMessage || 'Unknown error'}`);
      }
      // Wait 3 seconds before retry
      await new Promise(resolve => setTimeout(resolve, 3000));
    }
    throw new Error('Task timeout');
  }
  // Complete text removal workflow
  async processImageTextRemoval(inputImage, options = {}) {
    try {
      console.log('Starting text removal...');
      const taskId = await this.removeTextFromImage(
        inputImage,
        options.prompt || "Remove all text from this image while preserving the background"
      );
      console.log(`Task created: ${taskId}`);
      const result = await this.waitForCompletion(taskId);
      console.log('Text removal completed!');
      console.log('Result Image URL:', result.resultImageUrl);
      console.log('Original Image URL (valid 10 min):', result.originImageUrl);
      return result;
    } catch (error) {
      console.error('Text removal failed:', error.message);
      throw error;
    }
  }
}
// Usage example
const api = new FluxKontextAPI('your_api_key_here');
// Remove text from image
api.processImageTextRemoval('https://example.com/image-with-text.jpg')
  .then(result => {
    console.log('Success! Image URL:', result.resultImageUrl);
  })
  .catch(error => {
    console.error('Failed:', error.message);
  });

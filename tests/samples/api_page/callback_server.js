const express = require('express');
const fs = require('fs');
const https = require('https');
const app = express();
app.use(express.json());
app.post('/flux-callback', (req, res) => {
  const { code, msg, data } = req.body;
  console.log('Received Flux image processing callback:', {
    taskId: data.taskId,
    status: code,
    message: msg
  });
  if (code === 200) {
    // Task completed successfully
    console.log('Image processing completed successfully');
    const { taskId, info } = data;
    const { originImageUrl, resultImageUrl } = info;
    console.log(`Original image URL: ${originImageUrl}`);
    console.log(`Result image URL: ${resultImageUrl}`);
    console.log('Note: Original image URL valid for 10 minutes only');
    // Download result image
    if (resultImageUrl) {
      downloadFile(resultImageUrl, `result_${taskId}.jpg`)
        .then(() => console.log('Result image downloaded successfully'))
        .catch(err => console.error('Result image download failed:', err));
    }
    // Download original image (if needed)
    if (originImageUrl) {
      downloadFile(originImageUrl, `original_${taskId}.jpg`)
        .then(() => console.log('Original image downloaded successfully'))
        .catch(err => console.error('Original image download failed:', err));
    }
  } else {
    // Task failed
    console.log('Image processing failed:', msg);
    // Handle specific error types
    if (code === 400) {
      console.log('Content policy violation - please adjust prompt');
    } else if (code === 500) {
      console.log('Internal error - please try again later');
    } else if (code === 501) {
      console.log('Generation task failed - may need to adjust parameters');
    }
  }
  // Return 200 status code to confirm callback received
  res.status(200).json({ status: 'received' });
});
// Helper function: download files
function downloadFile(url, filename) {
  return new Promise((resolve, reject) => {
    const file = fs.createWriteStream(filename);
    https.get(url, (response) => {
      if (response.statusCode === 200) {
        response.pipe(file);
        file.on('finish', () => {
          file.close();
          resolve();
        });
      } else {
        reject(new Error(`HTTP ${response.statusCode}`));
      }
    }).on('error', reject);
  });
}
app.listen(3000, () => {
  console.log('Callback server running on port 3000');
});

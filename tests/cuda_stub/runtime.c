// A stand-in for NVIDIA's runtime library: it claims one H100, and does nothing.
//
// Preloaded, its functions replace those of libcudart. Torch then believes that a card is there, so
// that code which asks for one takes its real path. No kernel runs: tensors must be fake ones
// (torch's FakeTensorMode), which have shapes and types but no numbers. Only for scripts/cuda_stub.py.
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#undef cudaGetDeviceProperties
#define DONE return cudaSuccess

enum { PROCESSORS = 132, WARP = 32, BLOCK = 1024, THREADS = 2048, SHARED = 232448 };
static const size_t MEMORY = 80ull << 30;
// Handles of streams and events only need to differ.
static long handle = 16;

// Devices
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; DONE; }
cudaError_t cudaGetDevice(int *device) { *device = 0; DONE; }
cudaError_t cudaSetDevice(int device) { DONE; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int other) { *can = 0; DONE; }
cudaError_t cudaDeviceSynchronize(void) { DONE; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; DONE; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; DONE; }
cudaError_t cudaGetLastError(void) { DONE; }
cudaError_t cudaPeekAtLastError(void) { DONE; }

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr asked, int device) {
  switch (asked) {
  case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
  case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
  case cudaDevAttrMultiProcessorCount: *value = PROCESSORS; break;
  case cudaDevAttrMaxThreadsPerBlock: *value = BLOCK; break;
  case cudaDevAttrWarpSize: *value = WARP; break;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED; break;
  case cudaDevAttrMaxThreadsPerMultiProcessor: *value = THREADS; break;
  default: *value = 1;
  }
  DONE;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *card, int device) {
  memset(card, 0, sizeof *card);
  strcpy(card->name, "NVIDIA H100 80GB HBM3 (stand-in)");
  card->major = 9;
  card->minor = 0;
  card->totalGlobalMem = MEMORY;
  card->multiProcessorCount = PROCESSORS;
  card->warpSize = WARP;
  card->maxThreadsPerBlock = BLOCK;
  card->maxThreadsPerMultiProcessor = THREADS;
  card->regsPerBlock = 65536;
  card->regsPerMultiprocessor = 65536;
  card->sharedMemPerBlock = 49152;
  card->sharedMemPerBlockOptin = SHARED;
  card->sharedMemPerMultiprocessor = 233472;
  card->l2CacheSize = 50 << 20;
  card->maxGridSize[0] = 2147483647;
  card->maxGridSize[1] = card->maxGridSize[2] = 65535;
  card->maxThreadsDim[0] = card->maxThreadsDim[1] = BLOCK;
  card->maxThreadsDim[2] = 64;
  DONE;
}

// Streams and events
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  DONE;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { *stream = (cudaStream_t)(handle += 16); DONE; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  return cudaStreamCreate(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { DONE; }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = 0; DONE; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { DONE; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { DONE; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { DONE; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  DONE;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *count) {
  *status = cudaStreamCaptureStatusNone;
  DONE;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { DONE; }
cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = (cudaEvent_t)(handle += 16); DONE; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  return cudaEventCreate(event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { DONE; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { DONE; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { DONE; }
cudaError_t cudaEventQuery(cudaEvent_t event) { DONE; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { DONE; }
cudaError_t cudaEventElapsedTime(float *time, cudaEvent_t begin, cudaEvent_t end) { *time = 1; DONE; }

// Memory, which the host owns
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = MEMORY; DONE; }
cudaError_t cudaMalloc(void **memory, size_t size) {
  size_t most = 64 << 20;
  *memory = malloc(size < most ? size : most);
  DONE;
}
cudaError_t cudaFree(void *memory) { DONE; }
cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned flags) { *memory = malloc(size); DONE; }
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) { DONE; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream) { DONE; }
cudaError_t cudaMemsetAsync(void *memory, int value, size_t size, cudaStream_t stream) { DONE; }

// Kernels
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) { DONE; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *kernel, void **arguments) {
  DONE;
}

// A stand-in for NVIDIA's driver library, beside runtime.c: it claims one H100, and does nothing.
//
// Triton and torch load it as libcuda.so.1. Functions without arguments are never looked at.

static void *const SOMETHING = (void *)16;

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = 0; return 0; }
int cuDeviceGetAttribute(int *value, int asked, int device) {
  switch (asked) {
  case 75: *value = 9; break;       // major
  case 76: *value = 0; break;       // and minor compute capability
  case 16: *value = 132; break;     // multiprocessors
  case 10: *value = 32; break;      // threads of a warp
  case 97: *value = 232448; break;  // shared memory of a block
  case 82: *value = 65536; break;   // registers of a multiprocessor
  default: *value = 1;
  }
  return 0;
}
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = SOMETHING; return 0; }
int cuCtxGetCurrent(void **context) { *context = SOMETHING; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxSetLimit() { return 0; }
int cuCtxGetLimit() { return 0; }
int cuGetErrorString(int error, const char **text) { *text = "stand-in"; return 0; }
int cuGetErrorName(int error, const char **text) { *text = "stand-in"; return 0; }
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long flags, void *status) {
  *function = 0;
  return 0;
}

int cuModuleLoad(void **module, const char *file) { *module = SOMETHING; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = SOMETHING; return 0; }
int cuModuleLoadDataEx() { return 0; }
int cuModuleUnload() { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = SOMETHING;
  return 0;
}
int cuFuncGetAttribute(int *value, int asked, void *function) { *value = 0; return 0; }
int cuFuncSetAttribute(void *function, int asked, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int config) { return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count) { *count = 2; return 0; }
int cuOccupancyMaxActiveClusters(int *count, void *function, void *config) { *count = 1; return 0; }
int cuLaunchKernel() { return 0; }
int cuLaunchKernelEx() { return 0; }
int cuLaunchCooperativeKernel() { return 0; }
int cuLinkCreate_v2() { return 0; }
int cuLinkAddData_v2() { return 0; }
int cuLinkComplete() { return 0; }
int cuPointerGetAttribute() { return 0; }
int cuTensorMapEncodeTiled() { return 0; }

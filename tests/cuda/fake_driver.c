/* An NVIDIA driver for machines without a GPU: says what the environment tells it, and writes every launch to a file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

static void say(const char *text) {
  FILE *file = fopen(getenv("FAKE_LOG"), "a");
  fputs(text, file);
  fclose(file);
}

int cuInit(unsigned flags) { return number("FAKE_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = number("FAKE_VERSION", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int capability = number("FAKE_CAPABILITY", 90);
  *value = attribute == 75 ? capability / 10 : capability % 10;
  return device != 40;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x123456789aL; return device != 40; }
static int depth;
int cuCtxPushCurrent_v2(void *context) { ++depth; return context != (void *)0x123456789aL; }
int cuCtxPopCurrent_v2(void **context) { --depth; return 0; }
int cuModuleLoadData(void **module, const void *image) {
  char text[200];
  snprintf(text, sizeof text, "load %.8s depth %d\n", (const char *)image, depth);
  say(text);
  *module = (void *)0x1111111111L;
  return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = strdup(name);
  return module != (void *)0x1111111111L;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
  char text[200];
  snprintf(text, sizeof text, "attribute %s %d %d\n", (char *)function, attribute, value);
  say(text);
  return 0;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
  char text[400];
  snprintf(text, sizeof text, "launch %s grid %u,%u,%u block %u,%u,%u shared %u stream %lx pointers %lx %lx size %d depth %d\n",
           (char *)function, gx, gy, gz, bx, by, bz, shared, (long)stream, *(long *)arguments[0], *(long *)arguments[1],
           number("FAKE_SIZES", 1) ? *(int *)arguments[2] : 0, depth);  // not every kernel has a third argument
  say(text);
  return number("FAKE_LAUNCH", 0);
}
int cuGetErrorString(int status, const char **text) { *text = "a fake error"; return 0; }

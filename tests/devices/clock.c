/* Shows a program another time of day: LD_PRELOAD=clock.so HDAP_CLOCK=FILE.

   FILE holds the seconds by which the clock is off, and may change at any moment, as when a clock is
   set. Times of files are off with it; how long things take is not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long off(void) {
  char text[32] = "";
  const char *name = getenv("HDAP_CLOCK");
  int file = name ? (int)syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return 0;
  syscall(SYS_read, file, text, sizeof text - 1);
  syscall(SYS_close, file);
  return atol(text);
}

int clock_gettime(clockid_t which, struct timespec *at) {
  int failed = (int)syscall(SYS_clock_gettime, which, at);
  if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) at->tv_sec += off();
  return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}

static int moved(int failed, struct stat *of) {
  if (!failed) {
    long by = off();
    of->st_mtime += by;
    of->st_ctime += by;
    of->st_atime += by;
  }
  return failed;
}

#define REAL(name, ...) ((int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

int stat(const char *restrict path, struct stat *restrict of) {
  return moved(REAL(stat, const char *, struct stat *)(path, of), of);
}

int lstat(const char *restrict path, struct stat *restrict of) {
  return moved(REAL(lstat, const char *, struct stat *)(path, of), of);
}

int fstat(int file, struct stat *of) {
  return moved(REAL(fstat, int, struct stat *)(file, of), of);
}

int fstatat(int folder, const char *restrict path, struct stat *restrict of, int flags) {
  return moved(REAL(fstatat, int, const char *, struct stat *, int)(folder, path, of, flags), of);
}

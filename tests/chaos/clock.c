/* A wall clock that jumps, for LD_PRELOAD: CLOCK_REALTIME is ahead by the seconds (int64) that the file CHAOS_CLOCK has.
   libfaketime 0.9.10 fails in Python's time.sleep unless it moves the monotonic clock too. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define OF_THE_WALL_CLOCK 1000000000 /* seconds that no monotonic clock has */

static volatile int64_t *offset;

__attribute__((constructor)) static void open_clock(void) {
  const char *path = getenv("CHAOS_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  void *memory = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
  if (memory != MAP_FAILED) offset = memory;
  if (file >= 0) close(file);
}

static int64_t ahead(void) { return offset ? *offset : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
  int status = syscall(SYS_clock_gettime, clock, now);
  if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
  return status;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec exact;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *now) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (now) *now = exact.tv_sec;
  return exact.tv_sec;
}

/* The kernel's clock has not jumped, so deadlines are moved back to it. */
static struct timespec deadline(const struct timespec *until) {
  struct timespec moved = *until;
  if (moved.tv_sec > OF_THE_WALL_CLOCK) moved.tv_sec -= ahead();
  return moved;
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
  static int (*wait)(sem_t *, const struct timespec *);
  struct timespec moved = deadline(until);
  if (!wait) wait = dlsym(RTLD_NEXT, "sem_timedwait");
  return wait(semaphore, &moved);
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
  static int (*wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  struct timespec moved = deadline(until);
  if (!wait) wait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2"); /* not the one before, on x86 */
  if (!wait) wait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
  return wait(condition, mutex, &moved);
}

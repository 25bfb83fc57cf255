#include "cpu/sets.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "cpu/sort.h"

namespace gpudedup {
namespace {

constexpr size_t BLOCK_BYTES = 8 << 20;
constexpr uint32_t EMPTY_SET = 0;  // an empty set needs an address that is not null

[[noreturn]] void fail(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

/// `bytes` of a new unlinked file, mapped. Space is allocated first: a full disk must fail here and not by SIGBUS.
void* map_file(const std::string& directory, size_t bytes) {
  std::string name = directory + "/gpudedup-sets-XXXXXX";
  int file = ::mkostemp(name.data(), O_CLOEXEC);
  if (file < 0) fail(errno, directory);
  ::unlink(name.c_str());
  int error;
  do error = ::posix_fallocate(file, 0, static_cast<off_t>(bytes));
  while (error == EINTR);
  void* address = error ? MAP_FAILED : ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (!error && address == MAP_FAILED) error = errno;
  ::close(file);
  if (error) fail(error, directory);
  return address;
}

}  // namespace

SetStore::~SetStore() {
  for (const Block& block : blocks_) ::munmap(block.address, block.bytes);
}

uint32_t* SetStore::allocate(size_t values) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (values > free_values_) {
    // Blocks grow with what there is, so that their number stays small: a process has some 65,000 mappings.
    size_t block = std::max<size_t>(BLOCK_BYTES, (in_memory_ + on_disk_) / 64);
    size_t bytes = (std::max(block, values * sizeof(uint32_t)) + 4095) / 4096 * 4096;
    bool memory = in_memory_ + bytes <= memory_bytes_;
    void* address = memory ? ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                           : map_file(directory_, bytes);
    if (address == MAP_FAILED) fail(errno, "memory for shingle sets");
#if defined(MADV_HUGEPAGE)
    ::madvise(address, bytes, MADV_HUGEPAGE);  // fewer page faults; advice only
#endif
    blocks_.push_back({address, bytes});
    (memory ? in_memory_ : on_disk_) += bytes;
    free_ = static_cast<uint32_t*>(address);
    free_values_ = bytes / sizeof(uint32_t);
  }
  free_values_ -= values;
  return std::exchange(free_, free_ + values);
}

void SetStore::add_as_is(uint32_t number, const uint32_t* values, size_t size) {
  uint32_t* place = size ? allocate(size) : const_cast<uint32_t*>(&EMPTY_SET);
  if (size) std::memcpy(place, values, size * sizeof(uint32_t));
  sets_[number] = {place, size};
}

void SetStore::add(Context& context, const uint32_t* numbers, const uint32_t* rows, size_t count,
                   const uint32_t* hashes, const int64_t* offsets) {
  constexpr size_t PIECE = 64;
  std::vector<std::vector<uint32_t>> scratch(context.workers());
  context.each((count + PIECE - 1) / PIECE,
               [&](size_t piece, unsigned worker) {
                 std::vector<uint32_t>& values = scratch[worker];
                 for (size_t i = piece * PIECE; i < std::min(count, (piece + 1) * PIECE) && !context.stopped(); ++i) {
                   int64_t first = offsets[rows[i]];
                   size_t size = static_cast<size_t>(offsets[rows[i] + 1] - first);
                   if (values.size() < 2 * size) values.resize(2 * size);
                   std::copy_n(hashes + first, size, values.begin());
                   add_as_is(numbers[i], values.data(), sort_unique(values.data(), size, values.data() + size));
                 }
               },
               count < 8);
}

}  // namespace gpudedup

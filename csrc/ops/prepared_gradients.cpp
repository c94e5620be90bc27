#include "prepared_gradients.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "cpu_tensors.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fused_losses {
namespace {

constexpr size_t kMostKinds = 256;  // that are remembered; a program has a few
constexpr size_t kTicketAlignment = 64;

struct Expectation {
  double grad_output = 1;
  int changes = 0;  // in a row

  void observe(double value) {
    if (value == grad_output) {
      changes = 0;
    } else if (std::isfinite(value) && value != 0) {
      grad_output = value;
      ++changes;
    }
  }
};

struct Ticket {
  std::vector<int64_t> call;
  double grad_output = 0;
  std::optional<Tensor> gradient;
};

struct Registry {
  std::mutex mutex;
  std::unordered_map<const void*, Ticket> tickets;
  std::map<std::vector<int64_t>, Expectation> expectations;
};

using Lock = std::lock_guard<std::mutex>;

Registry* make_registry();

// Made when the library is loaded and never destroyed: tickets may outlive every static object.
Registry& registry = *make_registry();

// A fork takes the mutex along, so that no other thread of this process can hold it in the new one for ever.
Registry* make_registry() {
#if defined(__unix__) || defined(__APPLE__)
  const auto unlock = [] { registry.mutex.unlock(); };
  pthread_atfork([] { registry.mutex.lock(); }, unlock, unlock);
#endif
  return new Registry;
}

// With the ticket's memory goes its gradient; outside the lock, as that calls whoever made the memory.
void free_ticket(void* data, void*) {
  std::optional<Tensor> gradient;
  {
    const Lock lock(registry.mutex);
    const auto found = registry.tickets.find(data);
    if (found != registry.tickets.end()) {
      gradient = std::move(found->second.gradient);
      registry.tickets.erase(found);
    }
  }
  std::free(data);
}

}  // namespace

CallKey::CallKey(std::initializer_list<const Tensor*> operands, std::initializer_list<int64_t> options)
    : kind(options) {
  const Tensor& input = **operands.begin();
  kind.push_back(to_shim(input.scalar_type()));
  const std::vector<int64_t> sizes = to_vector(input.sizes());
  if (!sizes.empty()) kind.insert(kind.end(), sizes.begin() + 1, sizes.end());
  call = options;
  for (const Tensor* operand : operands) {
    if (operand == nullptr) {
      call.push_back(0);
      continue;
    }
    call.push_back(static_cast<int64_t>(reinterpret_cast<uintptr_t>(operand->data_ptr())));
    call.push_back(to_shim(operand->scalar_type()));
    call.push_back(operand->dim());
    for (int64_t dim = 0; dim < operand->dim(); ++dim) {
      call.push_back(operand->size(dim));
      call.push_back(operand->stride(dim));
    }
  }
}

bool PreparedGradients::is_ticket(const Tensor& tensor) {
  const Lock lock(registry.mutex);
  return registry.tickets.find(tensor.data_ptr()) != registry.tickets.end();
}

std::optional<Tensor> PreparedGradients::new_ticket(const std::vector<int64_t>& sizes, ScalarType type,
                                                    const CallKey& key) {
  const std::optional<size_t> bytes = bytes_of(sizes, type);
  if (!bytes.has_value()) return std::nullopt;
  void* data =
      std::aligned_alloc(kTicketAlignment, (*bytes + kTicketAlignment - 1) / kTicketAlignment * kTicketAlignment);
  if (data == nullptr) return std::nullopt;
  std::optional<Tensor> ticket = tensor_over(data, sizes, contiguous_strides(sizes), type, free_ticket, nullptr);
  if (!ticket.has_value()) {
    std::free(data);
    return std::nullopt;
  }
  const Lock lock(registry.mutex);
  registry.tickets.emplace(data, Ticket{key.call, 0, std::nullopt});
  return ticket;
}

std::optional<double> PreparedGradients::expected_grad_output(const CallKey& key) {
  const Lock lock(registry.mutex);
  const auto found = registry.expectations.find(key.kind);
  const Expectation expectation = found != registry.expectations.end() ? found->second : Expectation{};
  return expectation.changes < 2 ? std::optional(expectation.grad_output) : std::nullopt;
}

void PreparedGradients::keep(const Tensor& ticket, double grad_output, const Tensor& gradient) {
  const Lock lock(registry.mutex);
  Ticket& kept = registry.tickets.at(ticket.data_ptr());
  kept.grad_output = grad_output;
  kept.gradient = gradient;
}

std::optional<Tensor> PreparedGradients::take(const Tensor& ticket, const CallKey& key, const Tensor& grad_output) {
  if (grad_output.numel() != 1 || !is_float_type(grad_output.scalar_type())) return std::nullopt;
  const double value = scalar_value(grad_output);
  std::optional<Tensor> gradient;  // freed without the lock, and before another is computed
  const Lock lock(registry.mutex);
  const auto found = registry.tickets.find(ticket.data_ptr());
  if (found == registry.tickets.end() || found->second.call != key.call) return std::nullopt;
  if (registry.expectations.size() >= kMostKinds) registry.expectations.clear();
  registry.expectations[key.kind].observe(value);
  gradient.swap(found->second.gradient);
  return value == found->second.grad_output ? gradient : std::nullopt;
}

int64_t PreparedGradients::count() {
  const Lock lock(registry.mutex);
  const auto waits = [](const auto& ticket) { return ticket.second.gradient.has_value(); };
  return std::count_if(registry.tickets.begin(), registry.tickets.end(), waits);
}

}  // namespace fused_losses

// SPDX-License-Identifier: GPL-2.0
/*
 * A process's address space in the device's MMU, by the kernel's HMM.
 *
 * The device asks for a translation by a fault. The fault's work finds the pages with hmm_range_fault() and enters them; an interval
 * notifier for each block of 2 MiB takes them away again before the kernel changes what is mapped there. Pages are never pinned:
 * what keeps a translation valid is that invalidate() returns only when the device no longer uses it.
 */

#include <linux/hmm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "driver.h"

/* Blocks of one context that are watched at a time; beyond that, old ones are given up. Covers 8 GiB. */
#define MAX_BLOCKS 4096
/* After so many collisions with invalidations a fault looks at its own page only. */
#define PATIENCE 4
/* Pages of which copies are made together when the device writes after a fork. */
#define COPY_AROUND 16UL

static unsigned int fault_around = SPACE_BLOCK_PAGES;
module_param(fault_around, uint, 0644);
MODULE_PARM_DESC(fault_around, "Pages, a power of two up to 512, that a fault of the device enters, and populates, together");

/* A block of virtual addresses that the device has, or had, translations of. */
struct block {
	struct mmu_interval_notifier notifier;
	struct context *context;
	unsigned long start;
	/* There may be translations. Under accel.mirror_lock. */
	bool mapped;
};

/* With accel.mirror_lock held. Returns when the device no longer uses translations of this range. */
static void device_invalidate(struct context *context, unsigned long start, unsigned long end)
{
	struct accel *accel = context->accel;

	lockdep_assert_held(&accel->mirror_lock);
	if (accel->mirror_gone)
		return;
	reg_write(accel, REG_INVALIDATE_START, start);
	reg_write(accel, REG_INVALIDATE, end | context->space);
}

static bool block_invalidate(struct mmu_interval_notifier *notifier, const struct mmu_notifier_range *range,
			     unsigned long seq)
{
	struct block *block = container_of(notifier, struct block, notifier);
	struct context *context = block->context;
	struct mutex *lock = &context->accel->mirror_lock;
	unsigned long start, end;

	if (mmu_notifier_range_blockable(range))
		mutex_lock(lock);
	else if (!mutex_trylock(lock))
		return false;
	/* A fault that is looking at these pages will see this and look again. */
	mmu_interval_set_seq(notifier, seq);
	if (block->mapped) {
		/* The range may be everything there is: rounded up only when it is the block's. */
		start = round_down(max(range->start, block->start), PAGE_SIZE);
		end = round_up(min(range->end, block->start + SPACE_BLOCK), PAGE_SIZE);
		device_invalidate(context, start, end);
		if (end - start == SPACE_BLOCK)
			block->mapped = false;
		atomic64_inc(&context->invalidations);
	}
	mutex_unlock(lock);
	return true;
}

static const struct mmu_interval_notifier_ops block_ops = {
	.invalidate = block_invalidate,
};

/* The device must have no translations any more. */
static void block_free(struct block *block)
{
	mmu_interval_notifier_remove(&block->notifier);
	kfree(block);
}

/* Gives up a block. Which one does not matter: the device asks again. */
static void give_up_a_block(struct context *context)
{
	struct block *block;
	unsigned long index = 0;

	lockdep_assert_held(&context->fault_lock);
	block = xa_find(&context->blocks, &index, ULONG_MAX, XA_PRESENT);
	if (!block)
		return;
	/* First: while there are translations, the notifier must stay. New ones need the fault_lock. */
	mutex_lock(&context->accel->mirror_lock);
	device_invalidate(context, block->start, block->start + SPACE_BLOCK);
	mutex_unlock(&context->accel->mirror_lock);
	xa_erase(&context->blocks, index);
	context->nr_blocks--;
	block_free(block);
}

static struct block *block_at(struct context *context, unsigned long addr)
{
	unsigned long index = addr >> SPACE_BLOCK_SHIFT;
	struct block *block;
	int ret;

	lockdep_assert_held(&context->fault_lock);
	block = xa_load(&context->blocks, index);
	if (block)
		return block;
	if (context->nr_blocks >= MAX_BLOCKS)
		give_up_a_block(context);
	block = kzalloc(sizeof(*block), GFP_KERNEL);
	if (!block)
		return ERR_PTR(-ENOMEM);
	block->context = context;
	block->start = index << SPACE_BLOCK_SHIFT;
	ret = mmu_interval_notifier_insert(&block->notifier, context->mm, block->start, SPACE_BLOCK, &block_ops);
	if (ret) {
		kfree(block);
		return ERR_PTR(ret);
	}
	ret = xa_err(xa_store(&context->blocks, index, block, GFP_KERNEL));
	if (ret) {
		block_free(block);
		return ERR_PTR(ret);
	}
	context->nr_blocks++;
	return block;
}

/* Pages to look at: `range` says where they are, `pfns` what was found. */
struct look {
	struct hmm_range range;
	unsigned long addr;
	bool write;
	/* Copies have been made. */
	bool prepared;
};

/*
 * Copies of shared and zero pages that are needed anyway: the kernel invalidates when it makes one, so if hmm_range_fault() made
 * them it would have to start anew after each. Returns whether there were any.
 */
static bool make_copies(struct context *context, struct look *look)
{
	struct hmm_range *range = &look->range;
	unsigned long addr, group = round_down(look->addr, COPY_AROUND << PAGE_SHIFT);
	bool any = false;

	for (addr = range->start; addr < range->end; addr += PAGE_SIZE) {
		unsigned long pfn = range->hmm_pfns[(addr - range->start) >> PAGE_SHIFT];
		bool near = addr >= group && addr < group + (COPY_AROUND << PAGE_SHIFT);

		if (!(pfn & HMM_PFN_VALID) || pfn & HMM_PFN_WRITE)
			continue;
		if (is_zero_pfn(pfn & ~HMM_PFN_FLAGS) || (look->write && near)) {
			/* A failure here is ignored: if the device needs the page, its own fault fails and reports it. */
			if (!fixup_user_fault(context->mm, addr, FAULT_FLAG_WRITE, NULL))
				any = true;
			cond_resched();
		}
	}
	return any;
}

/* Finds the pages, the fault's own one in any case; with mmap_lock held. -EAGAIN: once more. */
static int find_pages(struct context *context, struct look *look, unsigned long around)
{
	struct hmm_range *range = &look->range;
	unsigned long i, own, populate;
	struct vm_area_struct *vma;
	int ret;

	vma = vma_lookup(context->mm, look->addr);
	if (!vma)
		return -EFAULT;
	if (look->write && !(vma->vm_flags & VM_WRITE))
		return -EPERM;
	range->start = max(vma->vm_start, round_down(look->addr, around));
	range->end = min(vma->vm_end, round_down(look->addr, around) + around);

	/* Find the present pages. */
	range->default_flags = 0;
	range->pfn_flags_mask = 0;
	ret = hmm_range_fault(range);
	if (ret)
		return ret;
	if (vma->vm_flags & VM_WRITE && !look->prepared) {
		look->prepared = true;
		if (make_copies(context, look))
			return -EAGAIN;
	}

	/* The page itself, and those that are missing; zero pages only where nothing else can come. */
	populate = HMM_PFN_REQ_FAULT | (vma->vm_flags & VM_WRITE ? HMM_PFN_REQ_WRITE : 0);
	own = (look->addr - range->start) >> PAGE_SHIFT;
	for (i = 0; i < (range->end - range->start) >> PAGE_SHIFT; i++) {
		if (!(range->hmm_pfns[i] & (HMM_PFN_VALID | HMM_PFN_ERROR)))
			range->hmm_pfns[i] = populate;
		else
			range->hmm_pfns[i] = 0;
		if (i == own)
			range->hmm_pfns[i] |= HMM_PFN_REQ_FAULT | (look->write ? HMM_PFN_REQ_WRITE : 0);
	}
	range->pfn_flags_mask = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE;
	return hmm_range_fault(range);
}

/* Hands over what was found; with accel.mirror_lock held, and what was found is current. */
static int enter_pages(struct context *context, struct block *block, const struct look *look)
{
	const struct hmm_range *range = &look->range;
	struct accel *accel = context->accel;
	unsigned long addr;
	int ret = 0;

	lockdep_assert_held(&accel->mirror_lock);
	if (accel->mirror_gone || READ_ONCE(context->closing))
		return -EFAULT;
	memset(accel->translations, 0, PAGE_SIZE);
	for (addr = range->start; addr < range->end; addr += PAGE_SIZE) {
		unsigned long pfn = range->hmm_pfns[(addr - range->start) >> PAGE_SHIFT];
		struct page *page = hmm_pfn_to_page(pfn);
		u64 translation;

		if (!(pfn & HMM_PFN_VALID))
			continue;
		translation = page_to_phys(page);
		if (translation - accel->managed_base >= accel->managed_size) {
			/* Not in memory that the device reaches. */
			if (addr == look->addr)
				ret = -EIO;
			continue;
		}
		translation |= TRANSLATION_VALID;
		if (pfn & HMM_PFN_WRITE) {
			translation |= TRANSLATION_WRITABLE;
			/* The device does not report its writes. File pages that are mapped writable are dirty already. */
			if (PageAnon(page))
				set_page_dirty(page);
		}
		accel->translations[(addr - block->start) >> PAGE_SHIFT] = translation;
	}
	block->mapped = true;
	reg_write(accel, REG_MAP, block->start | context->space);
	return ret;
}

/* The loop of Documentation/mm/hmm.rst. Returns -EFAULT, -EPERM, -ENOMEM or another error if there can be no translation. */
static int mirror_pages(struct context *context, unsigned long addr, bool write)
{
	unsigned long around = clamp(fault_around, 1U, (unsigned int)SPACE_BLOCK_PAGES);
	struct look look = { .addr = addr, .write = write };
	struct hmm_range *range = &look.range;
	unsigned int tries = 0;
	struct block *block;
	int ret;

	if (addr >= TASK_SIZE_MAX)
		return -EFAULT;
	block = block_at(context, addr);
	if (IS_ERR(block))
		return PTR_ERR(block);
	around = rounddown_pow_of_two(around) << PAGE_SHIFT;
	range->notifier = &block->notifier;
	range->hmm_pfns = context->pfns;
	for (;;) {
		if (READ_ONCE(context->closing))
			return -EFAULT;
		range->notifier_seq = mmu_interval_read_begin(range->notifier);
		mmap_read_lock(context->mm);
		ret = find_pages(context, &look, around);
		mmap_read_unlock(context->mm);
		if (ret == -EAGAIN)
			continue;
		if (!ret) {
			mutex_lock(&context->accel->mirror_lock);
			if (!mmu_interval_read_retry(range->notifier, range->notifier_seq)) {
				ret = enter_pages(context, block, &look);
				mutex_unlock(&context->accel->mirror_lock);
				return ret;
			}
			mutex_unlock(&context->accel->mirror_lock);
			ret = -EBUSY;
		}
		if (ret == -EBUSY) {
			atomic64_inc(&context->retries);
			if (++tries == PATIENCE)
				around = PAGE_SIZE;
		} else if (around > PAGE_SIZE) {
			/* A neighbour's trouble is not this access's. */
			around = PAGE_SIZE;
		} else {
			return ret;
		}
		cond_resched();
	}
}

static u32 status_of(int error)
{
	switch (error) {
	case 0:
		return 0;
	case -EFAULT:
		return HMMVISOR_BAD_ADDRESS;
	case -EPERM:
		return HMMVISOR_NOT_PERMITTED;
	default:
		return HMMVISOR_FAULT;
	}
}

static void resume(struct accel *accel, u32 number, u32 status)
{
	mutex_lock(&accel->mirror_lock);
	if (!accel->mirror_gone)
		reg_write(accel, REG_RESUME, (u64)number << 32 | status);
	mutex_unlock(&accel->mirror_lock);
}

static void serve_fault(struct work_struct *work)
{
	struct context *context = container_of(work, struct context, fault_work);
	u64 fault = context->fault;
	int ret = -EFAULT;

	atomic64_inc(&context->faults);
	/* A process that is exiting, or has, has no memory any more. */
	if (mmget_not_zero(context->mm)) {
		mutex_lock(&context->fault_lock);
		ret = mirror_pages(context, context->fault_address, FAULT_IS_WRITE(fault));
		mutex_unlock(&context->fault_lock);
		resume(context->accel, FAULT_NUMBER(fault), status_of(ret));
		/* May be the last, and take long. */
		mmput(context->mm);
	} else {
		resume(context->accel, FAULT_NUMBER(fault), status_of(ret));
	}
	context_put(context);
}

/* In the interrupt's thread: does the device wait for a translation? */
void mirror_check_fault(struct accel *accel)
{
	u64 fault = reg_read(accel, REG_FAULT);
	struct context *context;

	/* The device waits until its fault is answered, and may interrupt for other reasons meanwhile. */
	if (!fault || FAULT_NUMBER(fault) == accel->last_fault)
		return;
	accel->last_fault = FAULT_NUMBER(fault);
	xa_lock(&accel->spaces);
	context = xa_load(&accel->spaces, FAULT_SPACE(fault));
	if (context && !kref_get_unless_zero(&context->ref))
		context = NULL;
	xa_unlock(&accel->spaces);
	if (!context) {
		resume(accel, FAULT_NUMBER(fault), HMMVISOR_FAULT);
		return;
	}
	/* Of one context only one fault waits at a time, and it is answered at the end of the work. */
	context->fault = fault;
	context->fault_address = reg_read(accel, REG_FAULT_ADDRESS);
	if (!queue_work(accel->faults, &context->fault_work))
		context_put(context);
}

int mirror_open(struct context *context)
{
	struct accel *accel = context->accel;
	int ret;

	mutex_init(&context->fault_lock);
	xa_init(&context->blocks);
	INIT_WORK(&context->fault_work, serve_fault);
	context->pfns = kcalloc(SPACE_BLOCK_PAGES, sizeof(*context->pfns), GFP_KERNEL_ACCOUNT);
	if (!context->pfns)
		return -ENOMEM;
	/* Cyclically, so that a number rests for a while. -EBUSY: too many contexts. */
	ret = xa_alloc_cyclic(&accel->spaces, &context->space, context,
			      XA_LIMIT(1, reg_read(accel, REG_SPACES)), &accel->last_space, GFP_KERNEL);
	if (ret < 0) {
		context->space = 0;
		return ret;
	}
	ret = 0;
	mutex_lock(&accel->mirror_lock);
	if (accel->mirror_gone)
		ret = -ENODEV;
	else
		reg_write(accel, REG_SPACE_OPEN, context->space);
	mutex_unlock(&accel->mirror_lock);
	return ret;
}

/* The device is about to be removed: no translations are in use afterwards, and the current command ends. */
void mirror_stop(struct accel *accel)
{
	struct context *context;
	unsigned long space;

	mutex_lock(&accel->mirror_lock);
	accel->mirror_gone = true;
	xa_for_each(&accel->spaces, space, context)
		reg_write(accel, REG_SPACE_CLOSE, space);
	mutex_unlock(&accel->mirror_lock);
}

/* The process will not use the device any more; it may be exiting, while the device executes its command. */
void mirror_close(struct context *context)
{
	struct accel *accel = context->accel;
	struct block *block;
	unsigned long index;

	/* A fault that is being served ends soon. */
	WRITE_ONCE(context->closing, true);
	mutex_lock(&accel->mirror_lock);
	/* Takes all translations away, and aborts the command that is waiting for one. */
	if (!accel->mirror_gone)
		reg_write(accel, REG_SPACE_CLOSE, context->space);
	mutex_unlock(&accel->mirror_lock);
	mutex_lock(&context->fault_lock);
	xa_for_each(&context->blocks, index, block) {
		xa_erase(&context->blocks, index);
		block_free(block);
	}
	context->nr_blocks = 0;
	mutex_unlock(&context->fault_lock);
}

/* None of the context's commands is in the queue any more: its number can be another's. */
void mirror_free(struct context *context)
{
	if (context->space)
		xa_erase(&context->accel->spaces, context->space);
	xa_destroy(&context->blocks);
	kfree(context->pfns);
}
